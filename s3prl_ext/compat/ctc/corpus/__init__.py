"""The corpora of s3prl's ``ctc`` downstream, which its wheel and sdist leave out (its folder has no ``__init__.py``).

s3prl 0.4.18 imports them as ``s3prl.downstream.ctc.corpus.libriphone`` and ``.snips``; a clone's own files come first.
Written anew to the same interface: sorted by label length, a training item is a bucket of neighbours.
"""
