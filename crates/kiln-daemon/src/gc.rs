//! What goes when: retention and its dry run.
