//! `divvy ps`: who has what.
