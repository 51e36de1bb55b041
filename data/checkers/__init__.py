"""Judges of attempts whose answer is not just a number: mathematics (`math_answers`) and programs (`sandbox`)."""
