"""`drimbox doctor`: tries every link of the gateway, and says what to mend."""
