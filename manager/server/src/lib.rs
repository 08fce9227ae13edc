//! What a manager does: API, Raft, leader loop, dispatcher.
