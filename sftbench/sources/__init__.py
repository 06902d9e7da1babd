"""From a name to records:

`names` (what a source refers to), `folders` and `cards` (what of a folder or archive is read), `contents`
(bytes, also of compressed files), `readers` (files to records, each with its line), `plain_text` and
`documents` (texts cut into rows), `columns` (read by name), `origins` (all of it opened, saved and hub data
sets too).
"""
