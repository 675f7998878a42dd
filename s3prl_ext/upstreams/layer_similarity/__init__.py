"""How similar the layers of a speech model are to those of another encoder, from paired inputs (MAM, section 4.1)."""
