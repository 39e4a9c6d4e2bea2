"""REINFORCE with a running-mean baseline, as a plugin of lmrl."""
