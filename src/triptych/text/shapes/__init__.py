"""The one normaliser of record shapes: whatever a record calls its dialogue, out comes one list of turns.

messages | conversations | conversation          turns, as objects
prompt + completion                              text or turns each
texts                                            [{"user", "assistant"}, ...]
query + response (+ history), question + answer, instruction (+ input) + output
choice: question, options and answer             where the source says so
"""
