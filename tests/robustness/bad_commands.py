"""Bad inputs of the commands themselves: their names, their options, values that no option takes."""

from tests.robustness.bad_input import Bad

CASES = [
    Bad("no-such-command", ["fot"], "no command 'fot'.*did you mean 'fit'"),
    Bad("fit-batch-size-zero", ["fit", "--data.batch_size", "0"], "data.batch_size is 0"),
]
