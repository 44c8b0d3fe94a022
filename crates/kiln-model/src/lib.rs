//! What a build is: templates, checks, plans, events. Pure.
