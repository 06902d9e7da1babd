"""From a record to a batch, in the order of a row's journey:

`conversations` (records to rows of one shape; `fields`, `choices` and `tool_calls` read what they have beside
question and answer), `rows` (their cache), `roles` (training rows and probe),
`chat_template` (rows to text), `tokenization` (text to tokens), `packing` (tokens to blocks and batches).
"""
