"""The whole story on real text: train a small model, ask where an answer comes from, and check by retraining."""
