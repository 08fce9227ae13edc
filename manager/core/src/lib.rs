//! What a manager decides: pure functions over the replicated state.
