"""Search for hyper-parameters by training several times and comparing on the validation split."""
