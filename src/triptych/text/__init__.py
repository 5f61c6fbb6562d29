"""Conversations as the model reads them: turns, chat template, token ids, positions.

Takes `Record.data`; gives a `Conversation`, its `Encoded` ids with one id per image, and with the images' sizes a
`Layout`: ``input_ids (T,)``, ``supervised (T,)``, ``position_ids (3, T)``, ``grids (N, 3)`` in patches.

    Record -> conversation.parse() -> Template.encode() -> Encoded -> layout.fit() -> layout.lay_out() -> Layout
"""
