//! Tests of what is on disk: by saving, loading, killing, filling, cutting and flipping.

#[cfg(test)]
mod crash;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod garbage;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod space;
