mod driver;
mod fairness;
mod gangs;
mod random;
