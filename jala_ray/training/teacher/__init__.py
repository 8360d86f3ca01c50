"""The inverse-dynamics teacher of grounded alignment: labelled chunks are streamed (`chunks.py`), moments of them solved (`fit.py`), and
what was found is kept beside the cache for runs over the same labels (`keep.py`).
"""
