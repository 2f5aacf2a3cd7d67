//! What the world does with each fault, in small.
