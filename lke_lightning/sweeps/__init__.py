"""Many runs of `fit`, one table: methods side by side (`compare`), strengths for a new model (`tune`)."""
