"""How an exported folder is served: what its data asks of a server, the commands, and the files of ``serving/``.

TrainedRun -> ServingNeeds -> commands, notes -> kit: serve.sh, client.py, ... filled from ``assets/serving``
"""
