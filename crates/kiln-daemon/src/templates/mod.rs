//! Templates: from a request to a stored template, and to a plan.
