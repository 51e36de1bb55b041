"""Judges of attempts whose answer is not just a number.

`math_answers` judges mathematics (`math_values` reads the answers), and `sandbox` judges programs.
"""
