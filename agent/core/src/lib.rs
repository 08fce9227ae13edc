//! What an agent decides: the next step of each task.
