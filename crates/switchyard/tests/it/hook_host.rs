//! Functions that misbehave: their own calls suffer, nobody else does.
