"""What a model's tokenizer and chat template make of text.

Takes a model folder's `tokenizer.json` and chat template, and pieces of text; gives ids, how the template writes turns
(`ChatStyle`), and `Encoded`: the ids of a conversation, with a place for each image and box.
"""
