"""What makes the project large, quick and safe to stop. You can skip this folder: no line here implements an
equation of the paper. Nothing here imports train.py, rewards.py or eval.py.
"""
