"""From a file to a batch, in the order of a row's journey:

`sources` (what a name refers to), `readers` (files to records), `origins` (folders, saved and hub data sets),
`conversations` (records to rows of one shape), `rows` (their cache), `roles` (training rows and probe),
`chat_template` (rows to text), `tokenization` (text to tokens), `packing` (tokens to blocks and batches).
"""
