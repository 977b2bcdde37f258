"""What is amiss in a collection: counts, doubtful series, copies, odd intensities; and the page that shows them."""
