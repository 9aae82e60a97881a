"""From tables to tables of results, figures and one page; numpy, matplotlib and HTML only."""
