"""What the command line offers beside `fit`: looking back, taking back, taking away, looking ahead."""
