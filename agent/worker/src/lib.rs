//! What an agent does: session, tasks, runtime and network calls.
