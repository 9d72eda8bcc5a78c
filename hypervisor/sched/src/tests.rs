mod cost;
mod driver;
mod fairness;
mod gangs;
mod grants;
mod loads;
mod random;
mod simulator;
