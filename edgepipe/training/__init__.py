"""Training of a torch model that is trained already: batches, losses and one loop, for passes that win accuracy back."""
