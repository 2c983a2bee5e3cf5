"""The Adversarial Robustness Toolbox, both ways: its attacks on our classifiers, its classifiers under our attacks."""
