"""What a chat template does with messages, found by asking it; nothing here knows data or models.

`rendering` (the template's text for messages), `tool_forms` (how it shows tools and thoughts, and what
becomes of those that it does not show), `frames` (what comes before an answer and what ends it),
`control_tokens` (text of the data that looks like control tokens, and stays text).
"""
