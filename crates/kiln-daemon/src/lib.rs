//! Many runs: where workers are started, followed and settled.
