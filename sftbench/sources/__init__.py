"""From a name to records:

`names` (what a source refers to), `readers` (files to records, each with its line), `origins` (files and
folders, saved and hub data sets, opened).
"""
