"""What the commands ``check``, ``encode``, ``index`` and ``plan`` do and print.

Takes paths and options; gives an exit status. Torch is imported only where a command asks for it.
"""
