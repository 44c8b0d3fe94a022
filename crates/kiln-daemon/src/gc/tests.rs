//! Tables of what was found, and what goes.
