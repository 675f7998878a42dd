"""Reading and showing what experiments measured; never imports s3prl."""
