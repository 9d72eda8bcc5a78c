mod cost;
mod driver;
mod fairness;
mod gangs;
mod loads;
mod random;
mod simulator;
