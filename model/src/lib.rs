//! The nouns of rswarm: ids, units, specs, objects and the ladder of task states.
