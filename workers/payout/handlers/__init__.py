"""The payout worker's steps, by what they are about: requests, passwords, transfers."""
