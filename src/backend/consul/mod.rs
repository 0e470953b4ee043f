//! The consul driver.
