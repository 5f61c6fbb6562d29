"""Answers of a trained model: generation, scores, the page that shows them, chat.

Takes a trained folder and samples or questions with images; gives `Prediction` and `Score`.
"""
