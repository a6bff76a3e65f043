"""Parts of fine-tuning: which tokens are learnt, in which order, by which parameters, and which steps are allowed."""
