"""The embedded data set and tiny model: trained, evaluated and shown in minutes on a CPU.

Takes an output folder; gives data, run file, a trained model and its scores.
"""
