//! Simulation, invariants, scenarios and style checks over the whole workspace.
