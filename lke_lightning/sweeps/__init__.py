"""Many runs of `fit`, one table: methods side by side (`compare`), hyperparameters for a new model (`tune`)."""
