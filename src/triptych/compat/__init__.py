"""Run files of other tools: recognised, translated into Triptych's settings, and what differs is said.

their.yaml -> values -> translation -> RunSettings        (loading.py; one folder per tool)
                        └ differs, dropped, you must do   (notes.py)
"""
